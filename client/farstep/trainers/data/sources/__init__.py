"""Where rows come from: `Source` in `base`, and one file for each kind."""
