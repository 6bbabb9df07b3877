"""Speed of the served application beside the bare model and beside other ways to serve it."""
