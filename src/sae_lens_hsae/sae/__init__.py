"""The two SAE classes and the parts that they have."""
