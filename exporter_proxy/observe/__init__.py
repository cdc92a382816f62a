"""What happened: exchanges, history, metrics and logs."""
