"""What the scripts of this folder share: processes that answer and time, within limits."""
