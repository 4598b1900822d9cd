"""Several attention systems under one budget: trained, and put into one table."""
