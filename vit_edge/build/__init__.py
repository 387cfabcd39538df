"""A bundle -> what runs fastest on this device: engines, and the record of a tuning."""
