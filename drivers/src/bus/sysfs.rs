//! sysfs and procfs below a root that tests can move.
