"""The images of the demo data, which simmim draws itself."""
