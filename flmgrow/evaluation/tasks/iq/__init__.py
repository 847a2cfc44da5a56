"""The paper's evaluation of rules, patterns and interference, generated from a seed."""
