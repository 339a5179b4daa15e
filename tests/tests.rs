//! The promises that Headfirst keeps, one file per promise. This file is their index.
