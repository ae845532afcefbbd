"""Recipes, the command that runs them, and the tables and plots of their results."""
