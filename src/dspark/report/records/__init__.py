"""Records that the verbs write: one file a kind, all with the same furniture (``kind.Kind``)."""
