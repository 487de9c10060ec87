//! Random operations on a tree and on the model: same answers, same errors, same outcome.

use super::model::{Model, Node, Path};
use super::{Fixture, ROOT, World, name};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use spiderweb::base::{Error, Result, TreePath};
use spiderweb::vfs::{Attr, Kind, NodeId, OpenFlags, RenameFlags, SetAttr, walk};

#[derive(Clone, Debug)]
enum Op {
    Create(Path),
    Mkdir(Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Write(Path, usize, Vec<u8>),
    Read(Path, usize, usize),
    Truncate(Path, usize),
    List(Path),
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    let data = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        3 => path().prop_map(Op::Create),
        4 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        3 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        3 => (path(), 0..100usize, data).prop_map(|(p, o, d)| Op::Write(p, o, d)),
        2 => (path(), 0..150usize, 0..80usize).prop_map(|(p, o, l)| Op::Read(p, o, l)),
        1 => (path(), 0..100usize).prop_map(|(p, s)| Op::Truncate(p, s)),
        1 => path().prop_map(Op::List),
    ]
}

pub fn compare_with_model(make: &dyn Fn() -> Fixture) {
    println!("conformance: random operations agree with the model");
    let config = Config { cases: 128, failure_persistence: None, ..Config::default() };
    let ops = prop::collection::vec(op(), 1..60);
    TestRunner::new(config)
        .run(&ops, |ops| {
            let fixture = make();
            let world = World::new(&fixture);
            let mut model = Model::new();
            for (i, op) in ops.iter().enumerate() {
                let (ours, theirs) = (on_tree(&world, op), on_model(&mut model, op));
                prop_assert_eq!(ours, theirs, "step {}: {:?}", i, op);
            }
            prop_assert_eq!(picture(&world, ROOT), model.0);
            Ok(())
        })
        .unwrap();
}

/// What an operation returns, as bytes.
fn on_model(m: &mut Model, op: &Op) -> Result<Vec<u8>, i32> {
    match op {
        Op::Create(p) => m.create(p).map(|()| vec![]),
        Op::Mkdir(p) => m.mkdir(p).map(|()| vec![]),
        Op::Unlink(p) => m.unlink(p).map(|()| vec![]),
        Op::Rmdir(p) => m.rmdir(p).map(|()| vec![]),
        Op::Rename(a, b) => m.rename(a, b).map(|()| vec![]),
        Op::Write(p, o, d) => m.write(p, *o, d).map(|()| vec![]),
        Op::Read(p, o, l) => m.read(p, *o, *l),
        Op::Truncate(p, s) => m.truncate(p, *s).map(|()| vec![]),
        Op::List(p) => m.list(p).map(|names| names.concat().into_bytes()),
    }
}

fn on_tree(w: &World<'_>, op: &Op) -> Result<Vec<u8>, i32> {
    try_on_tree(w, op).map_err(|e| e.errno())
}

fn at(w: &World<'_>, path: &[&'static str]) -> Result<Attr> {
    walk::resolve(w.tree, &w.cx, &TreePath::parse(path.join("/"))?)
}

fn parent(w: &World<'_>, path: &[&'static str]) -> Result<(NodeId, &'static str)> {
    let (last, dir) = path.split_last().expect("paths are not empty");
    let dir = at(w, dir)?;
    if dir.kind != Kind::Dir {
        return Err(Error::from_errno(libc::ENOTDIR, "the parent is a file"));
    }
    Ok((dir.id, last))
}

fn try_on_tree(w: &World<'_>, op: &Op) -> Result<Vec<u8>> {
    let (t, cx) = (w.tree, &w.cx);
    match op {
        Op::Create(p) => {
            let (dir, n) = parent(w, p)?;
            let (_, h) = w.create(dir, n, OpenFlags { exclusive: true, ..OpenFlags::WRITE })?;
            t.release(cx, h)?;
        }
        Op::Mkdir(p) => {
            let (dir, n) = parent(w, p)?;
            t.mkdir(cx, dir, name(n), 0o755)?;
        }
        Op::Unlink(p) => {
            let (dir, n) = parent(w, p)?;
            t.unlink(cx, dir, name(n))?;
        }
        Op::Rmdir(p) => {
            let (dir, n) = parent(w, p)?;
            t.rmdir(cx, dir, name(n))?;
        }
        Op::Rename(a, b) => {
            let (from, to) = (parent(w, a)?, parent(w, b)?);
            let flags = RenameFlags::default();
            t.rename(cx, (from.0, name(from.1)), (to.0, name(to.1)), flags)?;
        }
        Op::Write(p, offset, data) => {
            let h = t.open(cx, at(w, p)?.id, OpenFlags::WRITE)?.handle;
            // A write of nothing past the end makes no hole; the model's writes do.
            let data = Bytes::copy_from_slice(data);
            let end = (*offset + data.len()) as u64;
            t.write(cx, h, *offset as u64, data)?;
            t.release(cx, h)?;
            if at(w, p)?.size < end {
                let size = SetAttr { size: Some(end), ..SetAttr::default() };
                t.setattr(cx, at(w, p)?.id, None, &size)?;
            }
        }
        Op::Read(p, offset, len) => {
            let h = t.open(cx, at(w, p)?.id, OpenFlags::READ)?.handle;
            let bytes = walk::read(t, cx, h, *offset as u64, *len as u32)?.0;
            t.release(cx, h)?;
            return Ok(bytes.to_vec());
        }
        Op::Truncate(p, size) => {
            let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
            t.setattr(cx, at(w, p)?.id, None, &set)?;
        }
        Op::List(p) => {
            let dir = at(w, p)?;
            let (entries, _) = walk::list(t, cx, dir.id, 100)?;
            let mut names: Vec<_> = entries.into_iter().map(|e| e.name).collect();
            names.sort();
            return Ok(names.iter().flat_map(|n| n.as_encoded_bytes().to_vec()).collect());
        }
    }
    Ok(vec![])
}

/// Everything below a node, as the model would hold it.
fn picture(w: &World<'_>, dir: NodeId) -> Node {
    let entries = w.entries(dir).into_iter().map(|e| {
        let name = ["a", "b", "c"].into_iter().find(|n| e.name == *n).expect("a name we made");
        let node = match e.attr.kind {
            Kind::Dir => picture(w, e.attr.id),
            _ => Node::File(w.get(e.attr.id)),
        };
        (name, node)
    });
    Node::Dir(entries.collect())
}
