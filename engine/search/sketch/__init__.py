"""`sketch`, our table search: the search, the tables that its moves change, and the inner solver."""
