"""Small models that the explorer and SPIN both look at (``tests.spin.models``)."""
