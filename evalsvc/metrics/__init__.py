"""Pure numerics: no files, no models, no services."""
