//! A cust program: context, buffers, module, streams, events, launch, copies.

use cust::{
    event::{Event, EventFlags},
    memory::{CopyDestination, DeviceBuffer, LockedBuffer},
    module::Module,
    stream::{Stream, StreamFlags},
};
use std::error::Error;

/// y[i] += a * x[i], as NVRTC 13.0 compiles it for sm_80, shortened.
const SAXPY: &str = include_str!("../saxpy.ptx");

fn main() -> Result<(), Box<dyn Error>> {
    let _context = cust::quick_init()?;
    println!("{}", cust::device::Device::get_device(0)?.name()?);
    let module = Module::from_ptx(SAXPY, &[])?;
    let saxpy = module.get_function("saxpy")?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let n = 1000_u32;
    let host: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let x = DeviceBuffer::from_slice(&host)?;
    let y = DeviceBuffer::from_slice(&vec![1.0_f32; n as usize])?;
    let begin = Event::new(EventFlags::DEFAULT)?;
    let end = Event::new(EventFlags::DEFAULT)?;
    // The plain copies above went through the default stream, which this stream does not follow.
    cust::context::CurrentContext::synchronize()?;
    begin.record(&stream)?;
    let (grid, block) = saxpy.suggested_launch_configuration(0, 0.into())?;
    let grid = grid.max(n.div_ceil(block));
    unsafe {
        cust::launch!(saxpy<<<grid, block, 0, stream>>>(
            y.as_device_ptr(), x.as_device_ptr(), 2.0_f32, n
        ))?;
    }
    end.record(&stream)?;
    end.synchronize()?;
    println!("elapsed {} ms", end.elapsed_time_f32(&begin)?);
    let mut back = vec![0.0_f32; n as usize];
    y.copy_to(&mut back)?;
    assert!(back.iter().enumerate().all(|(i, v)| *v == 1.0 + 2.0 * i as f32));
    let mut pinned = LockedBuffer::new(&0.0_f32, n as usize)?;
    y.copy_to(&mut pinned[..])?;
    assert_eq!(&pinned[..], &back[..]);
    println!("ok");
    Ok(())
}
