"""References by back-propagation, for reports only: what a method with gradients would reach."""
