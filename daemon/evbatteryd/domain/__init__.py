"""What is true: readings, brands, waiting, budgets. No I/O, no clock, no logging, no third party."""
