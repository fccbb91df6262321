//! The driver: what programs call, with the names and layouts of `libcuda.so`.

mod api;
mod capture;
mod faults;
mod graph;
mod options;
mod state;
mod status;
mod work;
