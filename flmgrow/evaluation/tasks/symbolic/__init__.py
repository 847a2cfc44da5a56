"""The paper's symbolic mapping: classes whose names say nothing."""
