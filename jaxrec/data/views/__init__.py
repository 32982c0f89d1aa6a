"""Shows a data set in another form, example by example."""
