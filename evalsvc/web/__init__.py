"""The dashboard: pages, panels and charts of what the REST API answers."""
