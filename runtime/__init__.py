"""A script's frame: errors and logs, flags, device, torch.distributed, the Hugging Face Hub."""
