//! metrics-server
