"""What must run, and why: fingerprints, and the decision for every stage."""
