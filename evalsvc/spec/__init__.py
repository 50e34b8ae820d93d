"""Everything that users write, and its validation: suites, layouts, model configurations, protocols, names."""
