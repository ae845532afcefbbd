"""Recipes, the command that runs them, and the tables and pictures that it makes."""
