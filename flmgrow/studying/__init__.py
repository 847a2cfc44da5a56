"""Whether growth pays: arms that are trained alike, and what their losses say."""
