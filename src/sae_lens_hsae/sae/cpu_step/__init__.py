"""The step's fast form on CPUs: a batch's activations as the few entries that matter."""
