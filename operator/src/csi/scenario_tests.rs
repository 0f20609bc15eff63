//! Calls against a scripted API server.
