//! Requests as the specification lays them out (virtio 1.2, section 5.13.6), and what
//! they are answered with.

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
pub const DEVERR: u8 = 3;
pub const INVAL: u8 = 4;
pub const RANGE: u8 = 5;
pub const NOENT: u8 = 6;
pub const FAULT: u8 = 7;
pub const NOMEM: u8 = 8;

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
/// `VIRTIO_IOMMU_ATTACH_F_BYPASS`
pub const BYPASS: u32 = 1;

fn request<const N: usize>(kind: u8, fields: &[&[u8]]) -> [u8; N] {
    // The head's reserved bytes are not zero: they do not matter.
    let mut bytes = vec![kind, 0xaa, 0xbb, 0xcc];
    fields.iter().for_each(|field| bytes.extend(*field));
    bytes.try_into().unwrap()
}

pub fn attach(domain: u32, endpoint: u32, flags: u32) -> [u8; 20] {
    let [domain, endpoint, flags] = [domain, endpoint, flags].map(u32::to_le_bytes);
    request(1, &[&domain, &endpoint, &flags, &[0; 4]])
}

pub fn detach(domain: u32, endpoint: u32) -> [u8; 20] {
    let [domain, endpoint] = [domain, endpoint].map(u32::to_le_bytes);
    request(2, &[&domain, &endpoint, &[0xdd; 8]])
}

pub fn map(domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> [u8; 36] {
    let [domain, flags] = [domain, flags].map(u32::to_le_bytes);
    let [first, last, physical] = [first, last, physical].map(u64::to_le_bytes);
    request(3, &[&domain, &first, &last, &physical, &flags])
}

pub fn unmap(domain: u32, first: u64, last: u64) -> [u8; 28] {
    let [first, last] = [first, last].map(u64::to_le_bytes);
    request(4, &[&domain.to_le_bytes(), &first, &last, &[0; 4]])
}

pub fn probe(endpoint: u32) -> [u8; 72] {
    request(5, &[&endpoint.to_le_bytes(), &[0x99; 64]])
}
