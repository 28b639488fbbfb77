"""Programs of others that read what we publish, run as their users run them."""
