//! A snapshot with state of a device is used where that device is, and refused with a word about it anywhere else.

use super::*;

fn accelerator() -> Accelerator {
    Accelerator { model: "Accelerator X".into(), driver: "1.2.3".into(), capability: (9, 0), memory_bytes: 80 << 30 }
}

fn with_device(capture: &mut Capture) {
    capture.identity.accelerators = vec![accelerator()];
    capture.device = DeviceState(b"what the device wants to find again".to_vec());
}

fn file() -> Vec<u8> {
    let (mut capture, memory) = small_runner();
    with_device(&mut capture);
    file_of(capture, &memory, &SMALL_FRAMES)
}

fn on(accelerators: Vec<Accelerator>) -> Identity {
    Identity { accelerators, ..identity() }
}

#[test]
fn state_of_a_device_comes_back_on_it() {
    let (image, _) = load(&file(), &KEY, &on(vec![accelerator()])).unwrap();
    assert_eq!(image.device.0, b"what the device wants to find again");
    assert_eq!(fuzz::decode(&file()), 4, "both frames, as they are and sealed anew");
}

#[test]
fn without_the_device_it_is_refused_by_name() {
    let expected = "the snapshot needs a device that this box has not: \
                    Accelerator X (9.0, 85899345920 bytes, driver 1.2.3)";
    assert_eq!(load(&file(), &KEY, &identity()).unwrap_err().to_string(), expected);
}

#[test]
fn another_device_or_driver_is_refused() {
    let own = accelerator;
    let others = [
        vec![Accelerator { model: "Accelerator Y".into(), ..own() }],
        vec![Accelerator { driver: "1.2.4".into(), ..own() }],
        vec![Accelerator { capability: (8, 9), ..own() }],
        vec![Accelerator { memory_bytes: 40 << 30, ..own() }],
        vec![own(), own()],
    ];
    for other in others {
        let error = load(&file(), &KEY, &on(other)).unwrap_err();
        assert!(matches!(error, SnapshotError::OtherIdentity { part: IdentityPart::Accelerators, .. }), "{error}");
    }
    let (capture, memory) = small_runner();
    let error = load(&file_of(capture, &memory, &SMALL_FRAMES), &KEY, &on(vec![own()])).unwrap_err();
    assert!(error.to_string().starts_with("the snapshot is of another set of accelerators: , not"), "{error}");
}

#[test]
fn every_flipped_bit_of_the_head_is_refused() {
    let (mut file, expected) = (file(), on(vec![accelerator()]));
    for index in 0..head_bytes(&file).unwrap() {
        for bit in 0..8 {
            file[index] ^= 1 << bit;
            assert!(load(&file, &KEY, &expected).is_err(), "bit {bit} of byte {index}");
            file[index] ^= 1 << bit;
        }
    }
    load(&file, &KEY, &expected).unwrap();
}

/// What is said of an image that was changed by `change`.
fn refusal(change: impl FnOnce(&mut Image)) -> String {
    let (mut capture, memory) = small_runner();
    with_device(&mut capture);
    let mut image =
        encode(capture, &memory, &SMALL_FRAMES, &KEY, &mut io::Cursor::new(Vec::new())).unwrap().into_image();
    change(&mut image);
    image.check().unwrap_err().to_string()
}

#[test]
fn state_and_device_come_together_and_are_bounded() {
    let section = "length of the device section is";
    assert_eq!(refusal(|image| image.device.0.clear()), format!("{section} 0x0: it cannot have this value"));
    let nameless = refusal(|image| image.identity.accelerators.clear());
    assert_eq!(nameless, format!("{section} 0x23: it cannot have this value"));
    let long = refusal(|image| image.device.0.resize(DEVICE_BYTES_MAX as usize + 1, 0));
    assert_eq!(long, "bytes of the device section: 65537; the limit is 65536");
    let many = refusal(|image| image.identity.accelerators = vec![accelerator(); ACCELERATORS_MAX + 1]);
    assert_eq!(many, "accelerators: 17; the limit is 16");
    let named = refusal(|image| image.identity.accelerators[0].model = "x".repeat(129));
    assert_eq!(named, "bytes of an accelerator's name: 129; the limit is 128");
}

#[test]
fn a_section_that_no_identity_names_is_not_restored() {
    let (mut capture, memory) = small_runner();
    capture.device = DeviceState(vec![1]);
    let error = encode(capture, &memory, &SMALL_FRAMES, &KEY, &mut io::Cursor::new(Vec::new())).unwrap_err();
    assert!(matches!(error, SnapshotError::Field { field: "length of the device section", value: 1, .. }), "{error}");
}
