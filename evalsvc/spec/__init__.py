"""What users write, checked when it is given: suites, layouts, model configurations, protocols, names."""
