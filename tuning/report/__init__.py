"""What a comparison found: numbers, tables, pictures, a page."""
