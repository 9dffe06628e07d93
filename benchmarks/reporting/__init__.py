"""Results as files, tables, plots and one page."""
