pub struct Embedded { pub name: &'static str, pub fatbin: &'static [u8] }
pub fn files() -> &'static [Embedded] { &[] }
pub fn architectures() -> &'static [&'static str] { &[] }
pub fn compiler() -> Option<&'static str> { None }
