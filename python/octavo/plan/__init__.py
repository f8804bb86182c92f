"""What the machine offers and what a plan on it costs."""
