"""Real libraries at import: an application behaves the same whether it is imported once or by each worker."""
