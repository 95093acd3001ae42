"""What features mean: what they fire on, names for them, circuits, steering, and the page that shows it."""
