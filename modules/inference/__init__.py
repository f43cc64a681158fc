"""A trained network prepared for evaluation, and its export for other programs."""
