"""How far two results are apart, several runs on one curve, and the gate."""
