"""What fine-tunes: where a training starts, one step of it, and the whole run."""
