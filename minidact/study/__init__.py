"""What compares: every mechanism over the range of its knob, every method on six tasks."""
