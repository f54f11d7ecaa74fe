"""Import and export: weights and features as other tools read them."""
