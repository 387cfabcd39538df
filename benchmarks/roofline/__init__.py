"""What the hardware could do at best."""
