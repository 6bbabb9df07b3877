"""What one evaluation costs: our towers beside the ways that others run them."""
