"""The reference pages that are generated from the code: one module per page, each with a function `page`."""
