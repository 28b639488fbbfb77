"""From "it is time" to "it is told": the timer rings, the poller asks, deliveries walk the journal."""
