"""open_clip models: weights, the two towers, and the fast ways through them."""
