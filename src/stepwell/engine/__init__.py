"""What decides: pure functions over a plan and a state."""
