"""What is true: readings, brands, waiting, budgets. No I/O, no clock, no logging; the standard library alone."""
